"""Small programs in Keras, of the architectures that its users build.

`registry` keeps them, and one module for each subject makes them. `columns` says what
is expected of each, `test_programs` tests it, and `table` prints it.
"""

from programs import graphs as graphs
from programs import images as images
from programs import sequences as sequences
from programs import several as several
from programs import tables as tables
from programs import text as text
from programs import translation as translation
from programs import vision as vision

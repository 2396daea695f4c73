from .free import check_memory as check_memory
from .free import free_memory as free_memory
from .overview import parameters_in_words as parameters_in_words
from .overview import placement_in_words as placement_in_words
from .overview import preflight as preflight
from .overview import shape_in_words as shape_in_words

from .config import model_and_placement as model_and_placement
from .config import special_config as special_config
from .weights import from_official as from_official
from .weights import to_official as to_official

from .fields import Pretraining as Pretraining
from .folder import CONFIG as CONFIG
from .folder import load_config as load_config
from .folder import load_model as load_model
from .folder import loading as loading
from .folder import quiet as quiet
from .folder import read_config as read_config

from .retention import choose_checkpoint as choose_checkpoint
from .retention import latest_valid as latest_valid
from .retention import list_checkpoints as list_checkpoints
from .storage import CheckpointWriter as CheckpointWriter
from .storage import load_checkpoint as load_checkpoint
from .storage import read_meta as read_meta
from .storage import save_checkpoint as save_checkpoint
from .storage import training_state as training_state

from .config import OptimizerConfig as OptimizerConfig
from .config import ParallelConfig as ParallelConfig
from .config import Recipe as Recipe
from .config import ScheduleConfig as ScheduleConfig
from .config import TrainConfig as TrainConfig
from .load import dump_recipe as dump_recipe
from .load import load_recipe as load_recipe
from .load import read_toml as read_toml

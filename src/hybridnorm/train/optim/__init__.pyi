from .build import build_optimizer as build_optimizer
from .decay_groups import decay_groups as decay_groups
from .decay_groups import decay_table as decay_table
from .optimizers import Optimizers as Optimizers
from .optimizers import step_unless as step_unless
from .state import materialize as materialize
from .state import optimizer_state as optimizer_state
from .state import restore as restore

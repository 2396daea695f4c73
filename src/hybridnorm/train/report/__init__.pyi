from .hooks import reporting_hooks as reporting_hooks
from .metrics import Metrics as Metrics
from .metrics import Row as Row
from .metrics import read_metrics as read_metrics
from .progress import seconds_left as seconds_left
from .spikes import SpikeMonitor as SpikeMonitor
from .step_log import StepLog as StepLog
from .trackers import check_installed as check_installed

from .catalogue import listing as listing
from .classifier.model import classify as classify
from .command import diagnose as diagnose
from .hook import probing_hooks as probing_hooks
from .hook import recorded_probes as recorded_probes
from .page import probe_sections as probe_sections

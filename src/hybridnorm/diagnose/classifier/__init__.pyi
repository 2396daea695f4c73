from .command import classify_command as classify_command
from .model import Report as Report
from .model import classify as classify

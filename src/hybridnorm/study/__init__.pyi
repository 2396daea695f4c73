from .plan import load_study as load_study
from .run import run_study as run_study

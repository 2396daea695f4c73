from .advise import advise as advise
from .listing import list_studies as list_studies
from .plan import load_study as load_study
from .report import rebuild as rebuild
from .run import run_study as run_study

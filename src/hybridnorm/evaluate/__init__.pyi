from .command import evaluate as evaluate
from .command import open_candidate as open_candidate
from .hook import asking_hooks as asking_hooks
from .options import EvaluateOptions as EvaluateOptions
from .results import read_questions as read_questions
from .tasks import Tasks as Tasks
from .tasks import ask as ask
from .text import score_texts as score_texts

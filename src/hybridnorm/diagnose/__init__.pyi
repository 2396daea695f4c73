from .classify.model import classify as classify

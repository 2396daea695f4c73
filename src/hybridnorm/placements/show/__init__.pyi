from .command import show as show
from .drawing import drawing_svg as drawing_svg

from .command import show as show
from .drawing import drawing_svg as drawing_svg
from .drawing import save_drawing as save_drawing
from .equations import block_lines as block_lines
from .equations import equations as equations

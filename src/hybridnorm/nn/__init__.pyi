from .attention import MultiheadAttention as MultiheadAttention
from .decoder import TransformerDecoder as TransformerDecoder
from .decoder import TransformerDecoderLayer as TransformerDecoderLayer
from .encoder import TransformerEncoder as TransformerEncoder
from .encoder import TransformerEncoderLayer as TransformerEncoderLayer
from .state_dicts import convert_state_dict as convert_state_dict

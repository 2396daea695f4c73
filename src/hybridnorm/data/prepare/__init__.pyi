from .folder import open_data as open_data
from .folder import prepare_folder as prepare_folder
from .pool import cores as cores
from .sources import find_sources as find_sources
from .texts import read_texts as read_texts

"""What people configure: command line over environment over a file over defaults, by one schema."""

from lib_mlx.settings.settings import ModelSettings, ServiceSettings, Settings
from lib_mlx.settings.sources import config_file, load_settings, user_config_file

__all__ = ["ModelSettings", "ServiceSettings", "Settings", "config_file", "load_settings", "user_config_file"]

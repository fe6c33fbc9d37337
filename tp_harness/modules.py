"""The sharded gpt-oss modules under their public name; they live in models/gpt_oss/modules."""

from .models.gpt_oss.modules import *  # noqa: F403
from .models.gpt_oss.modules import __all__  # noqa: F401

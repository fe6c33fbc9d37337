"""How hypothesis draws examples: the same in every run, so that what a run says is about the change that was made.

New ones are looked for by `pytest --hypothesis-profile search`.
"""

from hypothesis import settings

settings.register_profile("same", deadline=None, derandomize=True)
settings.register_profile("search", deadline=None, print_blob=True)
settings.load_profile("same")

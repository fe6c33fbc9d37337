"""What a user writes to have a module verified: a Case, with its plan, taps and routers."""

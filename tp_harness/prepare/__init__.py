"""The preparation of a run before any rank starts: Cases, weights, inputs, the oracle, and a check of free memory."""

"""Numbers modulo primes: no module of a model, and no operation of torch's dispatcher, is known here."""

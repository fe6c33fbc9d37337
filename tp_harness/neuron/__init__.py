"""All that knows the Neuron SDK: devices, cores, environment, versions, logs. No torch."""

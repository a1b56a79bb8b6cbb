"""Asked against measured: speed-ups reached on this machine, and what the model of cost was worth."""

"""How much each unit matters: calibration statistics and criteria."""

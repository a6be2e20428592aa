"""What flows through a network on calibration data, and the range of it that int8 should hold."""

"""What runtimes on a GPU share: a stream to time on, and the state of the device."""

//! Dead tasks: they failed because their attempts are used up.

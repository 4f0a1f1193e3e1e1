"""The command line: dispatch, fit and its help and messages, doctor, data, demo; nothing below
imports it."""

"""What every test run starts from."""

import signal

# A shell that starts a job in the background lets it ignore Ctrl-C, and its children too: the tests
# that interrupt a script would wait for nothing.
signal.signal(signal.SIGINT, signal.default_int_handler)

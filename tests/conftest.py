"""Set-up before all tests."""

import signal

# A shell makes its background jobs and their children ignore Ctrl-C.  Then the tests that interrupt
# a script would wait until their time is over.
signal.signal(signal.SIGINT, signal.default_int_handler)

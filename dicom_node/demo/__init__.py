"""The demonstration: a whole hospital, model owner and dealer on one machine, and studies that go through it.

Reading order: `site` writes the throw-away certificates and settings, `stack` starts the processes, `pacs` is the
receiving PACS (Orthanc where it is installed), `studies` draws or wraps what is sent, `show` runs it all and prints.
"""

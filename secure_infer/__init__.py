"""From a complete study to its Structured Report, so that nobody sees the image and nobody sees the weights.

Reading order
-------------
card, models
    The public, signed model card, and the store of models.
network
    The public trunk that the hospital runs in the clear.
networks, compile
    Networks whose private part is evaluated as a whole; from a trained one to its public program and private weights.
engine, dealt, engines
    The port of the private part, its encrypted implementation (party 0), and the choice between engines.
crypten_engine
    The second encrypted engine, CrypTen, hardened; in child processes.
protocol
    Dealt two-party computation: roles, messages and arguments in its README.
party, dealer, memory
    The services of the model owner and of the third organisation, and how the former gives freed memory back.
answer, report
    From logits to an answer, and from answers to DICOM Structured Reports.
worker, service, single
    Leases a study's job, runs the above and queues the delivery; the same for single files.
"""

"""From a complete study to its Structured Report, so that nobody sees the image and nobody sees the weights.

Reading order
-------------
card, models, site_models
    The public, signed model card, the store of models, and which of them answers at a site.
network
    The public trunk that the hospital runs in the clear.
networks, compile, bounds
    Networks whose private part is evaluated as a whole; from a trained one to its public program and
    private weights, and the proof that none of its values can leave the ring.
engine, dealt, engines
    The port of the private part, its encrypted implementation (party 0), and the choice between engines.
crypten_engine
    The second encrypted engine, CrypTen, hardened; in child processes.
protocol
    Dealt two-party computation: roles, messages and arguments in its README.
transport, spent
    Messages over mutual TLS, and the ledger of bundles that are used up.
party, dealer, dealing, operations
    The services of the model owner and of the third organisation, the pool of bundles dealt ahead, and what both offer
    those who run them.
answer, report
    From logits to an answer, and from answers to DICOM Structured Reports.
worker, service, single
    Leases a study's job, runs the above and queues the delivery; the same for single files.
"""

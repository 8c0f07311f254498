"""The demonstration's Orthanc is the tests' Orthanc."""

from dicom_node.demo.orthanc_server import PLUGINS, OrthancServer, free_port

__all__ = ["PLUGINS", "OrthancServer", "free_port"]

"""The parts of answers that tests of a stand-in compare."""


def statuses(batch):
    """Return the statuses of the answers to a batch."""
    return [response.status_code for response in batch._responses]


def names(blobs):
    """Return the names of blobs."""
    return [blob.name for blob in blobs]

"""What tests share: a clock that only moves when told, and a CVAT client that answers by script."""

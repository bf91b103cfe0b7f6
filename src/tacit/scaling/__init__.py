"""What training of a model will take, from its shapes alone: memory, communication, forms of what is held.

This is arithmetic on sizes and decides nothing about privacy: that plan is in ``tacit.plan``.
"""

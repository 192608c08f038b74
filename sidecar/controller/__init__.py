"""Who a request is, whether it runs, and how it is settled."""

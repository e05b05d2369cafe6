"""What the files hold that a user gives, looked at before anything starts.

No torch: the host imports it. May import `record`.
"""

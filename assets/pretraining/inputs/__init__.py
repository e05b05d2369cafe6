"""What the files hold that a user gives, looked at before anything starts. The standard library alone.

May import `record`.
"""

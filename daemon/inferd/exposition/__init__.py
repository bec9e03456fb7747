"""What is exported and how: collectors, the text format, the status page, and the HTTP port for them."""

"""Statistics and figures from the files that runs leave behind; nothing here imports training code."""

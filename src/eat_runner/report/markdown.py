"""Tables as Markdown."""

from eat_runner.report.view import Table


def markdown(table: Table) -> str:
    """The table without its title; what would end a cell is escaped."""
    lines = [[head.name for head in table.heads], ["---"] * len(table.heads)]
    lines += [[text.replace("|", "\\|").replace("\n", " ") for text in row] for row in table.rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)

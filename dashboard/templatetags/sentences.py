"""The tags of Django's `i18n`; a sentence without variables is looked up once, when its template is compiled.

Pages are English only (`USE_I18N`), and a page has hundreds of such sentences.
"""

from __future__ import annotations

from django.template import Context, Library
from django.template.base import Node, Parser, TextNode, Token
from django.templatetags import i18n

register = Library()
register.tags.update(i18n.register.tags)
register.filters.update(i18n.register.filters)


@register.tag
def translate(parser: Parser, token: Token) -> Node:
    """Return the text of a literal, else Django's node."""
    node = i18n.do_translate(parser, token)
    expression = node.filter_expression
    is_literal = not expression.filters and expression.var.literal is not None
    return TextNode(node.render(Context())) if is_literal and not node.asvar else node

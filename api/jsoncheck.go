package api

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"strconv"
	"strings"
)

// A jsonCheck compares a JSON text with a shape. It finds several faults at
// once, each with its path: updates[2].target.kind.
type jsonCheck struct {
	in    *json.Decoder
	path  []byte
	found []FieldError
}

// checkJSON reports what is wrong with a text as a *requestError, nil if it is
// one value of the shape.
func checkJSON(text []byte, s *shape) error {
	c := jsonCheck{in: json.NewDecoder(bytes.NewReader(text))}
	c.in.UseNumber()
	if err := c.value(s); errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		return invalid("body", ruleSyntax, "is not JSON: it ends too early")
	} else if err != nil {
		return invalid("body", ruleSyntax, "is not JSON: "+shorten(err.Error()))
	}
	if _, err := c.in.Token(); !errors.Is(err, io.EOF) {
		return invalid("body", ruleSyntax, "goes on after its value")
	}
	if len(c.found) > 0 {
		return &requestError{fields: c.found}
	}
	return nil
}

func (c *jsonCheck) fault(rule, detail string) {
	if len(c.found) >= maxFields {
		return
	}
	field := string(c.path)
	if field == "" {
		field = "body"
	}
	c.found = append(c.found, FieldError{Field: field, Rule: rule, Detail: detail})
}

// value reads one value. An error is one of syntax: reading cannot go on.
func (c *jsonCheck) value(s *shape) error {
	token, err := c.in.Token()
	if err != nil {
		return err
	}
	switch t := token.(type) {
	case json.Delim:
		switch {
		case t == '{' && s.kind == anObject:
			return c.object(s)
		case t == '[' && s.kind == aList:
			return c.list(s)
		}
		c.wrongKind(s)
		return c.skip()
	case json.Number:
		c.number(s, t.String())
	case bool:
		if s.kind != aBoolean {
			c.wrongKind(s)
		}
	case string:
		if s.kind != aText {
			c.wrongKind(s)
		}
	default: // null
		c.wrongKind(s)
	}
	return nil
}

func (c *jsonCheck) wrongKind(s *shape) { c.fault(ruleType, "must be "+s.kind.String()) }

func (c *jsonCheck) number(s *shape, text string) {
	if s.kind != anInteger || strings.ContainsAny(text, ".eE") {
		c.wrongKind(s)
	} else if _, err := strconv.ParseInt(text, 10, 64); err != nil {
		c.fault(ruleMax, "must fit in 64 bits")
	}
}

// object reads the rest of an object.
func (c *jsonCheck) object(s *shape) error {
	outer := len(c.path)
	var seen uint64
	for c.in.More() {
		token, err := c.in.Token()
		if err != nil {
			return err
		}
		name, _ := token.(string)
		i := s.find(name)
		c.enter(outer, name)
		switch {
		case i < 0:
			c.fault(ruleUnknown, "there is no such member")
			err = c.in.Decode(new(json.RawMessage))
		case seen&(1<<i) != 0:
			c.fault(ruleRepeated, "is given more than once")
			err = c.in.Decode(new(json.RawMessage))
		default:
			seen |= 1 << i
			err = c.value(s.members[i].shape)
		}
		if err != nil {
			return err
		}
	}
	for i := range s.members {
		if s.members[i].required && seen&(1<<i) == 0 {
			c.enter(outer, s.members[i].name)
			c.fault(ruleRequired, "is missing")
		}
	}
	c.path = c.path[:outer]
	_, err := c.in.Token() // the end of the object
	return err
}

// enter makes the path that of a member of the value at path[:outer].
func (c *jsonCheck) enter(outer int, name string) {
	c.path = c.path[:outer]
	if outer > 0 {
		c.path = append(c.path, '.')
	}
	if len(name) > maxField {
		name = shorten(name)
	}
	c.path = append(c.path, name...)
}

// list reads the rest of a list.
func (c *jsonCheck) list(s *shape) error {
	outer := len(c.path)
	for i := 0; c.in.More(); i++ {
		c.path = strconv.AppendInt(append(c.path[:outer], '['), int64(i), 10)
		c.path = append(c.path, ']')
		if err := c.value(s.element); err != nil {
			return err
		}
	}
	c.path = c.path[:outer]
	_, err := c.in.Token() // the end of the list
	return err
}

// skip reads the rest of a value that has begun with a delimiter.
func (c *jsonCheck) skip() error {
	for depth := 1; depth > 0; {
		token, err := c.in.Token()
		if err != nil {
			return err
		}
		if d, ok := token.(json.Delim); ok {
			if d == '{' || d == '[' {
				depth++
			} else {
				depth--
			}
		}
	}
	return nil
}

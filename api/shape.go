package api

import (
	"reflect"
	"strings"
)

// A shape is what a JSON value must look like: the type that it is decoded into.
// The decoder of the standard library would let unknown and repeated members
// pass, and names that differ in case.
type shape struct {
	kind    shapeKind
	members []member // of an object, 64 at most
	element *shape   // of a list
}

type shapeKind int

const (
	anObject shapeKind = iota
	aList
	anInteger
	aBoolean
	aText
)

// String completes "must be".
func (k shapeKind) String() string {
	return [...]string{"an object", "a list", "an integer", "true or false", "a string"}[k]
}

// A member is one of an object's. Those without omitempty must be there.
type member struct {
	name     string
	required bool
	shape    *shape
}

// shapeOf is the shape of a type of the contract. A map is an object without
// members.
func shapeOf(t reflect.Type) *shape {
	switch t.Kind() {
	case reflect.Pointer:
		return shapeOf(t.Elem())
	case reflect.Struct:
		s := &shape{kind: anObject}
		for i := range t.NumField() {
			name, option, _ := strings.Cut(t.Field(i).Tag.Get("json"), ",")
			s.members = append(s.members, member{name, option == "", shapeOf(t.Field(i).Type)})
		}
		return s
	case reflect.Slice:
		return &shape{kind: aList, element: shapeOf(t.Elem())}
	case reflect.Int, reflect.Int64:
		return &shape{kind: anInteger}
	case reflect.Bool:
		return &shape{kind: aBoolean}
	case reflect.String:
		return &shape{kind: aText}
	case reflect.Map:
		return &shape{kind: anObject}
	default:
		panic("api: a body with a " + t.String()) // found when the server is made
	}
}

// find is the index of a member, -1 for none.
func (s *shape) find(name string) int {
	for i := range s.members {
		if s.members[i].name == name {
			return i
		}
	}
	return -1
}

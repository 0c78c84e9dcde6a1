package main

import (
	"errors"
	"fmt"
	"maps"
	"path/filepath"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"time"
)

// A decoder puts what a YAML parser made of a configuration into structs, and
// collects what is wrong with it, each with the path of its key. It is strict,
// unlike the libraries: no key is ignored, nor matched by another spelling, and
// no value turned into another type. The keys of a struct are its json tags.
type decoder struct {
	base     string // relative paths are relative to it
	problems problems
}

// problems are the findings about a configuration.
type problems []error

// add notes what is wrong at a path.
func (p *problems) add(path, format string, args ...any) {
	*p = append(*p, fmt.Errorf("%s: %s", path, fmt.Sprintf(format, args...)))
}

// A hostPath is a path of a file, absolute once it is decoded.
type hostPath string

// A selfDecoder decodes itself, from whatever stands there.
type selfDecoder interface {
	decode(d *decoder, path string, in any)
}

// decode puts in into what out points to.
func (d *decoder) decode(path string, in, out any) { d.value(path, in, reflect.ValueOf(out).Elem()) }

func (d *decoder) value(path string, in any, out reflect.Value) {
	if self, does := out.Addr().Interface().(selfDecoder); does {
		self.decode(d, path, in)
		return
	}
	if in == nil {
		d.problems.add(path, "has no value")
		return
	}
	switch out.Kind() {
	case reflect.Pointer:
		out.Set(reflect.New(out.Type().Elem()))
		d.value(path, in, out.Elem())
	case reflect.Struct:
		d.object(path, in, out)
	case reflect.Slice:
		d.list(path, in, out)
	case reflect.Map:
		d.table(path, in, out)
	default:
		if err := d.scalar(in, out); err != nil {
			d.problems.add(path, "%s %v", show(in, out), err)
		}
	}
}

// show is a value as a finding quotes it.
func show(in any, out reflect.Value) string {
	const most = 100
	t := out.Type()
	if t.Kind() == reflect.Map {
		t = t.Elem()
	}
	switch t {
	case reflect.TypeFor[secret]():
		return "the value"
	case reflect.TypeFor[webURL]():
		if v := reflect.ValueOf(in); v.Kind() == reflect.String {
			if in = webURL(v.String()).shown(); in == "" {
				return "the value"
			}
		}
	}
	switch v := in.(type) {
	case nil:
		return "nothing"
	case map[string]any, map[any]any:
		return "a map"
	case []any:
		return "a list"
	case string:
		if len(v) > most {
			v = v[:most] + "..."
		}
		return fmt.Sprintf("%q", v)
	}
	return fmt.Sprint(in)
}

// scalar puts in a single value.
func (d *decoder) scalar(in any, out reflect.Value) error {
	switch into := out.Addr().Interface().(type) {
	case *byteSize:
		var err error
		switch v := in.(type) {
		case string:
			*into, err = parseByteSize(v)
		case int, int64, uint64:
			*into, err = parseByteSize(fmt.Sprint(v))
		default:
			err = errSize
		}
		return err
	case *time.Duration:
		v, err := time.ParseDuration(fmt.Sprint(in)) // which takes a plain 0, and no other number
		if err != nil {
			return errors.New("is no duration, such as 100ms, 2s or 1m30s")
		}
		*into = v
		return nil
	case *hostPath:
		v, is := in.(string)
		if !is {
			return errors.New("must be text")
		}
		switch {
		case v == "":
			return errors.New("is no path")
		case filepath.IsAbs(v):
			*into = hostPath(filepath.Clean(v))
		default:
			*into = hostPath(filepath.Join(d.base, v))
		}
		return nil
	}
	return plain(in, out)
}

// plain puts in a value of one of the language's own types.
func plain(in any, out reflect.Value) error {
	v := reflect.ValueOf(in)
	wants := "text"
	switch out.Kind() {
	case reflect.String:
		if v.Kind() == reflect.String {
			out.SetString(v.String())
			return nil
		}
	case reflect.Bool:
		if v.Kind() == reflect.Bool {
			out.SetBool(v.Bool())
			return nil
		}
		wants = "true or false"
	case reflect.Int:
		if v.CanInt() {
			out.SetInt(v.Int())
			return nil
		}
		wants = "a whole number"
	default:
		if v.CanInt() {
			v = reflect.ValueOf(float64(v.Int()))
		}
		if v.CanFloat() {
			out.SetFloat(v.Float())
			return nil
		}
		wants = "a number"
	}
	return fmt.Errorf("must be %s", wants)
}

// object puts a map into a struct.
func (d *decoder) object(path string, in any, out reflect.Value) {
	members, ok := d.members(path, in, out)
	if !ok {
		return
	}
	var known []string
	for i := range out.NumField() {
		key := keyOf(out.Type().Field(i))
		known = append(known, key)
		if v, given := members[key]; given {
			delete(members, key)
			d.value(join(path, key), v, out.Field(i))
		}
	}
	allowed := "there are none here"
	if len(known) > 0 {
		allowed = "must be one of " + strings.Join(known, ", ")
	}
	for _, key := range slices.Sorted(maps.Keys(members)) {
		d.problems.add(joinAny(path, key), "is an unknown key, %s", allowed)
	}
}

// keyOf is the key that a field of a struct has in a configuration.
func keyOf(f reflect.StructField) string {
	key, _, _ := strings.Cut(f.Tag.Get("json"), ",")
	return key
}

func join(path, key string) string { return path + "." + key }

// joinAny is join for a key that may be anything, and is quoted if it would not
// read as one.
func joinAny(path, key string) string {
	odd := func(r rune) bool { return strings.ContainsRune(` ."[]`, r) || !strconv.IsPrint(r) }
	if key == "" || strings.ContainsFunc(key, odd) {
		key = strconv.Quote(key)
	}
	return join(path, key)
}

// list puts a list into a slice.
func (d *decoder) list(path string, in any, out reflect.Value) {
	items, is := in.([]any)
	if !is {
		d.problems.add(path, "%s must be a list", show(in, out))
		return
	}
	out.Set(reflect.MakeSlice(out.Type(), len(items), len(items)))
	for i, item := range items {
		d.value(fmt.Sprintf("%s[%d]", path, i), item, out.Index(i))
	}
}

// table puts a map into a map, whatever its keys are.
func (d *decoder) table(path string, in any, out reflect.Value) {
	members, ok := d.members(path, in, out)
	if !ok {
		return
	}
	out.Set(reflect.MakeMap(out.Type()))
	for _, key := range slices.Sorted(maps.Keys(members)) {
		v := reflect.New(out.Type().Elem()).Elem()
		d.value(joinAny(path, key), members[key], v)
		out.SetMapIndex(reflect.ValueOf(key), v)
	}
}

// members are those of a map, which may be taken out. YAML reads the key null,
// which is the name of a node, as no text.
func (d *decoder) members(path string, in any, out reflect.Value) (map[string]any, bool) {
	switch m := in.(type) {
	case map[string]any:
		return maps.Clone(m), true
	case map[any]any:
		named := make(map[string]any, len(m))
		for key, v := range m {
			name, is := key.(string)
			if key == nil {
				name, is = "null", true
			}
			if !is {
				d.problems.add(path, "the key %v must be text", key)
				return nil, false
			}
			named[name] = v
		}
		return named, true
	}
	d.problems.add(path, "%s must be a map", show(in, out))
	return nil, false
}

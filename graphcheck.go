package main

import (
	"errors"
	"fmt"
	"maps"
	"reflect"
	"slices"
	"strings"

	"github.com/go-playground/validator/v10"

	"github.com/extentd/extentd/service"
)

// A graphCheck finds what decoded images cannot be.
type graphCheck struct {
	rules    *validator.Validate
	names    map[string]string   // where each image is
	scratch  map[hostPath]string // where each file is that is written over
	problems problems
}

// checkImages checks each image by the rules in its tags, then beside the others.
func checkImages(images []imageConfig) problems {
	c := graphCheck{rules: newRules(), names: make(map[string]string), scratch: make(map[hostPath]string)}
	for i := range images {
		c.image(fmt.Sprintf("images[%d]", i), &images[i])
	}
	for i := range images { // now that all scratch files are known
		f, is := images[i].Node.options.(*fileNode)
		if is && c.scratch[f.Path] != "" {
			c.problems.add(fmt.Sprintf("images[%d].node.file.path", i), "%q is the file of %s, which overwrites it", f.Path, c.scratch[f.Path])
		}
	}
	return c.problems
}

// newRules returns a validator that knows the keys of fields.
func newRules() *validator.Validate {
	v := validator.New(validator.WithRequiredStructEnabled())
	v.RegisterTagNameFunc(keyOf)
	for tag, rule := range map[string]validator.Func{
		"image_name":   func(f validator.FieldLevel) bool { return service.ValidName(f.Field().String()) },
		"power_of_two": func(f validator.FieldLevel) bool { n := f.Field().Int(); return n > 0 && n&(n-1) == 0 },
	} {
		_ = v.RegisterValidation(tag, rule) // only an empty tag fails
	}
	return v
}

func (c *graphCheck) image(path string, i *imageConfig) {
	c.fields(path, i)
	if at := c.names[i.Name]; at != "" && i.Name != "" {
		c.problems.add(path+".name", "%q is the name of %s too", i.Name, at)
	}
	c.names[i.Name] = path
	if i.Node.options == nil {
		c.problems.add(path+".node", "is missing, must have one of %s", strings.Join(slices.Sorted(maps.Keys(nodeKinds())), ", "))
		return
	}
	if at := path + ".node." + i.Node.kind; c.fields(at, i.Node.options) {
		c.problems.addInvalid(at, probeNode(i.Node.options))
	}
	for n, f := range i.Filters {
		at := fmt.Sprintf("%s.filters[%d].%s", path, n, f.kind)
		if c.fields(at, f.options) {
			c.problems.addInvalid(at, probeFilter(f.options))
		}
		c.overwrites(at+".path", f.options)
	}
	switch format := i.format(); {
	case format == "":
		c.problems.add(path+".format", "is missing, and no file's extension tells it: must be one of qcow2, raw")
	case i.Backing != "" && !formats()[format].Children:
		c.problems.add(path+".backing", "an image of format %s has none", format)
	}
}

// overwrites checks that no other filter has the same scratch file.
func (c *graphCheck) overwrites(path string, options filterOptions) {
	o, does := options.(scratcher)
	if !does || o.scratch() == "" {
		return
	}
	if at := c.scratch[o.scratch()]; at != "" {
		c.problems.add(path, "%q is the file of %s too", o.scratch(), at)
	}
	c.scratch[o.scratch()] = path
}

// fields applies the rules in the tags of a struct.
func (c *graphCheck) fields(path string, of any) (kept bool) {
	var broken validator.ValidationErrors
	if !errors.As(c.rules.Struct(of), &broken) {
		return true
	}
	for _, f := range broken {
		_, key, _ := strings.Cut(f.Namespace(), ".") // what is before it is the name of the struct
		if f.Tag() == "required" {
			c.problems.add(join(path, key), "is missing")
			continue
		}
		c.problems.add(join(path, key), "%s %s", show(f.Value(), reflect.ValueOf(f.Value())), allowed(f))
	}
	return false
}

// allowed says what the rule that a field broke asks for.
func allowed(f validator.FieldError) string {
	switch f.Tag() {
	case "image_name":
		return "is no name, which is a letter or digit, then at most 254 of letters, digits, '.', '_' and '-'"
	case "power_of_two":
		return "must be a power of two"
	case "min", "gte":
		return "must be at least " + bound(f)
	case "max", "lte":
		return "must be at most " + bound(f)
	case "gt":
		return "must be more than " + bound(f)
	case "oneof":
		return "must be one of " + strings.ReplaceAll(f.Param(), " ", ", ")
	case "http_url":
		return "must be a URL of http or https"
	}
	return fmt.Sprintf("breaks the rule %s %s", f.Tag(), f.Param())
}

// bound is a bound as a configuration would give it.
func bound(f validator.FieldError) string {
	if f.Type() == reflect.TypeFor[byteSize]() {
		if n, err := parseByteSize(f.Param()); err == nil {
			return n.String()
		}
	}
	return f.Param()
}

package api

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"reflect"
	"slices"
	"strconv"
	"strings"

	"github.com/go-playground/validator/v10"

	"github.com/extentd/extentd/service"
	"github.com/extentd/extentd/storage"
)

// A paramKind is what the value of a query parameter looks like.
type paramKind int

const (
	text paramKind = iota
	integer
	boolean
)

// A query lists the query parameters of a route.
type query map[string]paramKind

// A requestError says what is wrong with a request.
type requestError struct{ fields []FieldError }

func (e *requestError) Error() string {
	texts := make([]string, len(e.fields))
	for i, f := range e.fields {
		texts[i] = f.Field + ": " + f.Detail
	}
	return strings.Join(texts, "; ")
}

// Unwrap says what kind of error it is.
func (e *requestError) Unwrap() error { return errInvalid }

// What a field breaks, beside the rules of the validator.
const (
	ruleUnknown  = "unknown"
	ruleRepeated = "repeated"
	ruleSyntax   = "syntax"
	rulePattern  = "pattern"
	ruleConflict = "conflict"
	ruleMax      = "max"
	ruleRequired = "required"
	ruleType     = "type"
	ruleLength   = "length"
	ruleValue    = "value"
)

func invalid(field, rule, detail string) *requestError {
	return &requestError{fields: []FieldError{{Field: field, Rule: rule, Detail: detail}}}
}

// check refuses parameters that the route does not have, that are given twice,
// or whose values do not look as they must. The generated code, which binds
// them after this, would let most of that pass.
func (q query) check(raw string) error {
	values, err := url.ParseQuery(raw)
	if err != nil {
		return invalid("query", ruleSyntax, "the query string cannot be decoded")
	}
	var broken requestError
	for name, given := range values {
		kind, known := q[name]
		var rule, detail string
		switch {
		case !known:
			rule, detail = ruleUnknown, "there is no such parameter"
		case len(given) > 1:
			rule, detail = ruleRepeated, "is given more than once"
		default:
			rule, detail = kind.check(given[0])
		}
		if rule != "" {
			broken.fields = append(broken.fields, FieldError{Field: shorten(name), Rule: rule, Detail: detail})
		}
	}
	if len(broken.fields) == 0 {
		return nil
	}
	slices.SortFunc(broken.fields, func(a, b FieldError) int { return strings.Compare(a.Field, b.Field) })
	broken.fields = broken.fields[:min(len(broken.fields), maxFields)]
	return &broken
}

const (
	maxFields = 16 // told at once
	maxField  = 64 // of the client's text is sent back
)

func shorten(name string) string {
	if len(name) > maxField {
		return strings.ToValidUTF8(name[:maxField], "") + "..."
	}
	return strings.ToValidUTF8(name, "")
}

// check returns the rule that the value breaks, "" for none.
func (k paramKind) check(value string) (rule, detail string) {
	switch k {
	case integer:
		digits := strings.TrimPrefix(value, "-")
		if digits == "" || strings.Trim(digits, "0123456789") != "" {
			return ruleSyntax, "must be a decimal integer"
		}
		if _, err := strconv.ParseInt(value, 10, 64); err != nil {
			return ruleMax, "must fit in 64 bits"
		}
	case boolean:
		if value != "true" && value != "false" {
			return ruleSyntax, "must be true or false"
		}
	case text:
	}
	return "", ""
}

// joinConditions makes one line of each conditional header, which may come in
// several, or be empty: the generated code expects one.
func joinConditions(next http.HandlerFunc) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		for _, name := range []string{"If-Match", "If-None-Match"} {
			if lines := r.Header[name]; len(lines) > 1 {
				r.Header[name] = []string{strings.Join(lines, ", ")}
			}
			if lines := r.Header[name]; len(lines) > 0 && lines[0] == "" {
				r.Header[name] = []string{`""`} // an ETag that nothing has
			}
		}
		next(w, r)
	}
}

// A call is the request behind the object that a control call gets.
type call struct {
	w  http.ResponseWriter
	r  *http.Request
	id string
}

type callKey struct{}

func callOf(ctx context.Context) call {
	c, _ := ctx.Value(callKey{}).(call)
	return c
}

// checked validates request objects by the rules of the contract.
func (s *server) checked(next StrictHandlerFunc, _ string) StrictHandlerFunc {
	return func(ctx context.Context, w http.ResponseWriter, r *http.Request, request any) (any, error) {
		if err := s.validate.StructCtx(ctx, request); err != nil {
			return nil, err
		}
		if s.opt.Audit != nil && changes(r.Method) {
			noteChange(w, request)
		}
		return next(context.WithValue(ctx, callKey{}, call{w: w, r: r, id: requestID(w)}), w, r, request)
	}
}

// newValidator returns one that knows the names that fields have on the wire.
func newValidator() *validator.Validate {
	v := validator.New(validator.WithRequiredStructEnabled())
	v.RegisterTagNameFunc(func(f reflect.StructField) string {
		name, _, _ := strings.Cut(f.Tag.Get("json"), ",")
		return name
	})
	return v
}

// asRequestError is what the validator, the generated code or the service
// found wrong with a request; nil if the error is none of theirs.
func asRequestError(err error) *requestError {
	var found validator.ValidationErrors
	var format *InvalidParamFormatError
	var many *TooManyValuesForParamError
	var required *RequiredParamError
	var option *storage.InvalidError
	switch {
	case errors.As(err, &found):
		return brokenRules(found)
	case errors.As(err, &option):
		return invalid(option.Field, ruleValue, option.Detail)
	case errors.As(err, &format):
		return invalid(format.ParamName, ruleSyntax, "has a value that cannot be read")
	case errors.As(err, &many):
		return invalid(many.ParamName, ruleRepeated, "is given more than once")
	case errors.As(err, &required):
		return invalid(required.ParamName, "required", "is missing")
	case errors.Is(err, service.ErrCursor):
		return invalid("cursor", ruleSyntax, "is none that a page came with")
	}
	return nil
}

// brokenRules are the first of the rules that the validator found broken.
func brokenRules(found validator.ValidationErrors) *requestError {
	request := new(requestError)
	for _, f := range found[:min(len(found), maxFields)] {
		field := f.Field()
		if _, path, inBody := strings.Cut(f.Namespace(), "Body."); inBody {
			field = path
		}
		rule := f.Tag()
		switch rule { // which of its kind it was is of no interest outside
		case "required_without", "required_if":
			rule = ruleRequired
		case "excluded_with", "excluded_unless":
			rule = ruleConflict
		}
		request.fields = append(request.fields, FieldError{Field: field, Rule: rule, Detail: ruleText(f)})
	}
	return request
}

func ruleText(f validator.FieldError) string {
	length := ""
	if kind := f.Kind(); kind == reflect.String || kind == reflect.Slice {
		length = " long"
	}
	switch f.Tag() {
	case "min":
		return fmt.Sprintf("must be at least %s%s", f.Param(), length)
	case "max":
		return fmt.Sprintf("must be at most %s%s", f.Param(), length)
	case "oneof":
		return "must be one of " + strings.ReplaceAll(f.Param(), " ", ", ")
	case "required_without", "required_if":
		return "is missing"
	case "excluded_with", "excluded_unless":
		return "does not go with the other members"
	}
	return "breaks the rule " + f.Tag()
}

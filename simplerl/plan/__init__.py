"""What follows from a recipe before anything runs: sequences, steps, tokens, models, memory. No torch, no network."""

from simplerl.plan.memory import FORMULA as FORMULA
from simplerl.plan.memory import GIB as GIB
from simplerl.plan.memory import memory as memory
from simplerl.plan.memory import models_held as models_held
from simplerl.plan.memory import parameters_held as parameters_held
from simplerl.plan.memory import workers as workers
from simplerl.plan.overview import Plan as Plan
from simplerl.plan.overview import make_plan as make_plan
from simplerl.plan.shapes import KNOWN as KNOWN
from simplerl.plan.shapes import Shape as Shape
from simplerl.plan.shapes import known_shape as known_shape
from simplerl.plan.shapes import shape_of as shape_of
from simplerl.plan.steps import known_problems as known_problems
from simplerl.plan.steps import sft_steps as sft_steps
from simplerl.plan.steps import total_steps as total_steps
from simplerl.plan.steps import updates_per_step as updates_per_step
